"""
Files on disk: their paths (paths), publishing and checking them (artifacts), the checksums of a study's
results (checksums), reading small files that may be damaged (reading), and the contents of the small
result files (run_records).
"""
