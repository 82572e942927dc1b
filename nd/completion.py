"""`nd completion bash`: a script by which a shell completes verbs, keys and values; bash, zsh and fish.

Put it where your shell reads it when it starts, or try it at once:
bash `source <(nd completion bash)`; zsh `source <(nd completion zsh)` after `compinit`; fish
`nd completion fish | source`.

Completed are verbs, the options of every group (`method=`, several after commas), fields (`guidance.kappa=`) with the
values they allow, tables, and for `nd show` and `nd log` the runs below `./runs`. The script holds the words that are
known now: print it again after installing a plug-in or another version.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields

from nd.config.components import choices_of
from nd.config.conf_files import search_folders
from nd.config.groups import LoggerConfig
from nd.config.help import EVERYTHING, MATTERS
from nd.config.known import Known, known_fields
from nd.config.overrides import group_names, group_options
from nd.config.words import Words, verb_of_words
from nd.errors import UserError, unknown
from nd.runs.catalogue import STATES
from nd.runs.groups import LOGGED
from nd.runs.identity import VERBS as VERBS_WITH_FOLDERS
from nd.tables.specs import available
from nd.verbs import VERBS

SHELLS = ("bash", "zsh", "fish")
FLAGS = ("-m", "--multirun", "--cfg", "--help", "--config-dir")
LOGGER_KEYS = [f"logger.{one.name}=" for one in fields(LoggerConfig) if one.name != "name"]
# What follows the verbs that look at runs; a word that ends in = takes a value.
OF_RUNS = {
    "ls": (*VERBS_WITH_FOLDERS, "state=", "scores=", "method=", "subject=", "paths.root="),
    "show": ("image=", "out=", "paths.root="),
    "clean": ("apply=true", "paths.root="),
    "log": (*LOGGED, "runs=", "method=", "subject=", "logger=", *LOGGER_KEYS, "paths.root="),
    "completion": SHELLS,
}


def completion(words: Words) -> int:
    """Print the script for a shell; returns the exit code."""
    if len(words.bare) != 1:
        raise UserError(f"for which shell? nd completion {' | '.join(SHELLS)}")
    if words.bare[0] not in SHELLS:
        raise unknown("shell", words.bare[0], SHELLS)
    print(script(words.bare[0]))
    return 0


def script(shell: str) -> str:
    """Return the script for a shell, one of ``SHELLS``."""
    return fish_script() if shell == "fish" else posix_script(shell)


# ---- words


def values() -> dict[str, list[str]]:
    """Return the values that can follow ``key=``, by key."""
    folders = search_folders()
    of_groups = {group: group_options(group, folders) for group in group_names(folders)}
    of_fields = {key: listed for key, one in known_fields().items() if (listed := _listed(key, one))}
    own = {"table": available(), "runs": ["all"], "state": [state for state in STATES if " " not in state]}
    return of_groups | of_fields | own


def _listed(key: str, one: Known) -> list[str]:
    if one.hint is bool:
        return ["true", "false"]
    return [str(choice) for choice in one.facts.choices if choice != ""] or list(choices_of(key))


def keys() -> dict[str, list[str]]:
    """Return the keys that can be typed by what they begin with: fields by ``group.``, all others by nothing."""
    groups = group_names(search_folders())
    found_keys: dict[str, list[str]] = {"": [f"{group}=" for group in groups]}
    for key in known_fields():
        group, dot, name = key.partition(".")
        if not dot:
            found_keys[""].append(f"{key}=")
        elif name != "name" or group not in groups:  # chosen by the group itself
            found_keys.setdefault(f"{group}.", []).append(f"{key}=")
    found_keys[""] += [prefix for prefix in found_keys if prefix]
    return found_keys


# ---- bash and zsh


def posix_script(shell: str) -> str:
    """Return the script for bash or zsh, whose functions differ in how the word being typed is found alone."""
    cases = [
        "_nd_values() { # key -> its values",
        *_case({key: " ".join(map(shlex.quote, listed)) for key, listed in values().items()}),
        "}",
        "_nd_keys() { # verb, word -> what it can become",
        "  case $1 in",
        *(f"    {verb}) echo {shlex.quote(' '.join(listed))}; return ;;" for verb, listed in OF_RUNS.items()),
        "  esac",
        "  case $2 in",
        f"    -*) echo {shlex.quote(' '.join(FLAGS))} ;;",
        *(f"    {shlex.quote(one)}*) echo {shlex.quote(' '.join(listed))} ;;" for one, listed in _by_length(keys())),
        "  esac",
        "}",
        "_nd_help() { # verb -> what its help can explain",
        *_case({verb: f"{EVERYTHING} {' '.join(words)}" for verb, words in MATTERS.items()}),
        "}",
        f"_nd_verbs={shlex.quote(' '.join(VERBS))}",
    ]
    return "\n".join([f"# {shell} completion for nd; made by: nd completion {shell}", *cases, OWN[shell].strip("\n")])


def _case(found: Mapping[str, str]) -> Iterator[str]:
    yield "  case $1 in"
    yield from (f"    {shlex.quote(key)}) echo {shlex.quote(text)} ;;" for key, text in found.items())
    yield "  esac"


def _by_length(found: Mapping[str, Sequence[str]]) -> list[tuple[str, Sequence[str]]]:
    return sorted(found.items(), key=lambda pair: -len(pair[0]))


BASH = r"""
_nd() {
  local line=${COMP_LINE:0:COMP_POINT} word verb last before="" one cut
  local -a typed candidates=()
  word=${line##*[[:space:]]}
  read -ra typed <<< "$line"
  [[ -n $word ]] && unset "typed[${#typed[@]}-1]"
  verb=${typed[1]}
  last=${typed[${#typed[@]}-1]}
  if [[ ${#typed[@]} -le 1 ]]; then
    candidates=($_nd_verbs --help --version)
  elif [[ $word == *=* ]]; then
    before=${word%"${word##*[=,]}"}
    candidates=($(_nd_values "${word%%=*}"))
  elif [[ $last == --help ]]; then
    candidates=($(_nd_help "$verb"))
  elif [[ $last == --cfg ]]; then
    candidates=(job hydra all)
  else
    candidates=($(_nd_keys "$verb" "$word"))
  fi
  case $verb:$word in
    show:* | log:runs=*)
      for one in runs/*/*-????????????/; do
        one=${one%/}
        [[ -d $one ]] && candidates+=("${one##*/}")
      done ;;
  esac
  COMPREPLY=()
  # Where = parts words, what is typed before it stays as it is.
  cut=""
  [[ $COMP_WORDBREAKS == *=* ]] && cut=${word%"${word##*=}"}
  for one in "${candidates[@]}"; do
    [[ $before$one == "$word"* ]] && COMPREPLY+=("${before:${#cut}}$one")
  done
  if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=.] ]]; then
    compopt -o nospace 2> /dev/null
  fi
}
complete -o bashdefault -o default -F _nd nd
"""
ZSH = r"""
_nd() {
  local word=$PREFIX verb=${words[2]} before="" one
  local -a candidates open closed
  if (( CURRENT == 2 )); then
    candidates=(${=_nd_verbs} --help --version)
  elif [[ $word == *=* ]]; then
    before=${word%"${word##*[=,]}"}
    candidates=(${=$(_nd_values "${word%%=*}")})
    (( ${#candidates} )) || { compset -P '*='; _files; return }
  elif [[ ${words[CURRENT-1]} == --help ]]; then
    candidates=(${=$(_nd_help "$verb")})
  elif [[ ${words[CURRENT-1]} == --cfg ]]; then
    candidates=(job hydra all)
  else
    candidates=(${=$(_nd_keys "$verb" "$word")})
  fi
  case $verb:$word in
    show:* | log:runs=*)
      for one in runs/*/*-????????????(N/); do candidates+=(${one:t}); done ;;
  esac
  for one in $candidates; do
    if [[ $one == *[=.] ]]; then open+=($before$one); else closed+=($before$one); fi
  done
  compadd -S '' -a open
  compadd -a closed
}
compdef _nd nd
"""
OWN = {"bash": BASH, "zsh": ZSH}


# ---- fish


def fish_script() -> str:
    """Return the script for fish."""
    lines = ["# fish completion for nd; made by: nd completion fish"]
    lines += _switch("__nd_values", "$argv[1]", values())
    lines += _switch("__nd_of_runs", "$argv[1]", OF_RUNS)
    lines += _switch("__nd_help", "$argv[1]", {verb: [EVERYTHING, *words] for verb, words in MATTERS.items()})
    lines += _switch("__nd_keys", "$argv[1]", {f"{group}*": listed for group, listed in _by_length(keys())})
    lines += [FISH.strip("\n").replace("VERBS", " ".join(VERBS)).replace("FLAGS", " ".join(FLAGS))]
    return "\n".join(lines)


def _switch(name: str, on: str, found: Mapping[str, Sequence[str]]) -> list[str]:
    cases = [
        line
        for key, listed in found.items()
        for line in (f"        case {shlex.quote(key)}", f"            printf '%s\\n' {shlex.join(listed)}")
    ]
    return [f"function {name}", f"    switch {on}", *cases, "    end", "end"]


FISH = r"""
function __nd_complete
    set -l word (commandline -ct)
    set -l line (commandline -opc)
    if test (count $line) -le 1
        printf '%s\n' VERBS --help --version
        return
    end
    set -l verb $line[2]
    if string match -q -- '*=*' $word
        set -l before (string replace -r -- '[^=,]*$' '' $word)
        for one in (__nd_values (string replace -r -- '=.*$' '' $word))
            echo $before$one
        end
        if string match -q -- 'log:runs=*' $verb:$word
            for one in runs/*/*-????????????
                echo $before(string replace -r -- '^.*/' '' $one)
            end
        end
    else if test $line[-1] = --help
        __nd_help $verb
    else if test $line[-1] = --cfg
        printf '%s\n' job hydra all
    else if test -n "$(__nd_of_runs $verb)"
        __nd_of_runs $verb
        if test $verb = show
            for one in runs/*/*-????????????
                string replace -r -- '^.*/' '' $one
            end
        end
    else if string match -q -- '-*' $word
        printf '%s\n' FLAGS
    else
        __nd_keys $word
    end
end
complete -c nd -e
complete -c nd -f -a '(__nd_complete)'
"""

main = verb_of_words(completion)

if __name__ == "__main__":
    main(None)
