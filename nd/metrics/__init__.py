"""How reconstructions are judged: pure functions, measures made of them, protocols, intervals."""
