"""The programs an export is for. Each opens the export in a separate process that imports nothing of the app.

A program's reply is data (`ReceiverReply`); verification/ compares it with base + adapter.
"""
