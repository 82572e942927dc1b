"""How reconstructions are judged: pure functions, torchmetrics classes over them, protocols, intervals."""
