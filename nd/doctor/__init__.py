"""What a configuration needs: whether it is there, how large, under which terms; and the verb that tells."""
