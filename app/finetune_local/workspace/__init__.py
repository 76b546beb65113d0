"""What spans runs, adapters and backends."""
