"""``gradtf server``: set up and run the server of a federation, and look at it."""
