"""Messages of the protocol as bytes."""
