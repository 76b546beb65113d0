"""What the desk (desk.py) can be asked: a module each, with `answer(call: Call, home: Home)`, whose result is plain JSON."""
