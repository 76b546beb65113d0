"""The app on the desktop: one instance per home, a window for the server's page, notifications."""
