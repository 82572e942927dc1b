"""What a configuration needs: whether it is there, how large it is, under which terms it is used, and the verb that tells."""
