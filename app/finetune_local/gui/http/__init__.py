"""The window's server: access control, validation of requests, limits, security headers."""
