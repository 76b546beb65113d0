"""What the lookup process (worker.py) can be asked: a module each, with `answer(request: RpcRequest, home: Home)`, whose result is plain JSON."""
