"""What operators of a real deployment need: certificates, keys of nodes, and checks of both."""
