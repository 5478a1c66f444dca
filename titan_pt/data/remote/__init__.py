"""Parquet files read row group by row group, local or over HTTP."""
