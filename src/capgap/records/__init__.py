"""
Files on disk: their paths (paths), how they are published and checked (artifacts), and what the small
files contain (run_records).
"""
