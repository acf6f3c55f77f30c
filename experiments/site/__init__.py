"""The documentation site: what `mkdocs build` adds to the pages in docs/. Every page of the reference is made here."""
