"""What ``import nd`` offers: runs read back, arrays scored, estimators, guidance of pipelines, configurations run."""
