"""ServerApp."""

from strategies.server_app import app as server

app = server
