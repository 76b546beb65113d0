"""The app as a program on a desktop: one instance a user, a window around the server's page, a word when a run has ended."""
