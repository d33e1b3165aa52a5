"""The report of a run: figures, comparisons and transcripts, read from its workdir."""
