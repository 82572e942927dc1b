"""Many runs as one job: which are there, doing the others here or elsewhere, and choosing settings by their scores."""
