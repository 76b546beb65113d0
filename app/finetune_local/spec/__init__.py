"""The spec: what a run is, declared once. No backend, no data; numpy and pydantic only."""
