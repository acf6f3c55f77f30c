"""ClientApp."""

from clients.client_app import app as client

app = client
