"""
What lies on disk: where (paths), how it is published and checked (artifacts), and what the small
files contain (run_records).
"""
