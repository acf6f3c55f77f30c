"""One measure for each table or figure of the paper; presets name them."""
