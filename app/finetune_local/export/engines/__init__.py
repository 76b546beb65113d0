"""The programs an export is for. Each opens the export in a separate process that imports nothing of the app.

What a program answers is data (`Heard`); verification/ decides whether it is right.
"""
