"""Programs that an export is for, asked themselves: each opens it in a process of its own with nothing of ours imported.

What such a program says is data (`Heard`); whether it is right is decided in ../verify.py.
"""
