"""The networks that judge images; none takes part in making them."""
