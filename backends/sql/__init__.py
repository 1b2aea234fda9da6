"""The SQL executor: DuckDB in worker processes, guarded, limited, cached."""
