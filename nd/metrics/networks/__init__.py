"""The networks that judge pictures; none takes part in making them."""
