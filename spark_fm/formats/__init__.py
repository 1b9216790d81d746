"""Files and messages: text, Parquet, npz, recordIO, requests and responses, models.

What reads and writes bytes lives here, without Spark and pandas. It imports the learner and the
errors only; everything above may import it: the data source, scoring, training, ml, the server
and the command line.
"""
