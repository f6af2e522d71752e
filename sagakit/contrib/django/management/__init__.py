"""Django finds management commands below this package."""
