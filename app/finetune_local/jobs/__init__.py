"""Long work beside training that survives a closed window: downloads, evaluations, exports, extractions.

job.py is a job's folder, worker.py the process in it, kinds/<name>.py what can be asked for: each calls what its verb calls.
"""
