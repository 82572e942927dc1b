"""What a configuration needs from disk: whether it is there, how large it is, and under which terms it is used."""
