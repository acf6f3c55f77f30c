"""What people read: terminal tables and progress, JSON documents, HTML pages."""
