"""The kubelet's HTTPS API (app.py), who may use it (auth.py), container logs (logs.py)."""
