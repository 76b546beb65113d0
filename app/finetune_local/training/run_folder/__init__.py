"""The run folder: made, listed, watched, checked, and described for lists and forecasts."""
