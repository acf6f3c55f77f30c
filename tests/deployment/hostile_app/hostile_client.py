"""Code that a server would like to run at organizations: it leaves a trace wherever it is imported."""

import os
from pathlib import Path

from flwr.clientapp import ClientApp

Path("PLANTED").with_name(f"planted-{os.getpid()}").write_text("executed")
app = ClientApp()
