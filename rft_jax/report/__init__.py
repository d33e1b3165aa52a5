"""The report of a run: charts, comparisons and transcripts, read from its workdir."""
