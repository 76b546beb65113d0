"""The spec: what a run is, declared once. Knows no backend, reads no data; numpy and pydantic only."""
