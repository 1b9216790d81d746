"""Write ``spark_fm/data/adult-*.parquet``: a9a, the one-hot form of UCI Adult, as a named table.

a9a has the 14 attributes in the order of the original file: exactly one of an attribute's
features is set, or none where the value is unknown; its features of numbers are ranges. Run it as
``PYTHONPATH=. python conf/write_adult.py``; the files ship with the package.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.datasets import a9a

FOLDER = Path(__file__).resolve().parent.parent / "spark_fm" / "data"
# The values of each attribute in the order of its features, 123 together.
VALUES = {
    "age": "17-25|26-32|33-40|41-49|50-90",
    "workclass": "Private|Self-emp-not-inc|Self-emp-inc|Federal-gov|Local-gov|State-gov|"
    "Without-pay|Never-worked",
    "fnlwgt": "1st fifth|2nd fifth|3rd fifth|4th fifth|5th fifth",
    "education": "Bachelors|Some-college|11th|HS-grad|Prof-school|Assoc-acdm|Assoc-voc|9th|"
    "7th-8th|12th|Masters|1st-4th|10th|Doctorate|5th-6th|Preschool",
    "education_num": "1-8|9|10|11-12|13-16",
    "marital_status": "Married-civ-spouse|Divorced|Never-married|Separated|Widowed|"
    "Married-spouse-absent|Married-AF-spouse",
    "occupation": "Tech-support|Craft-repair|Other-service|Sales|Exec-managerial|Prof-specialty|"
    "Handlers-cleaners|Machine-op-inspct|Adm-clerical|Farming-fishing|Transport-moving|"
    "Priv-house-serv|Protective-serv|Armed-Forces",
    "relationship": "Wife|Own-child|Husband|Not-in-family|Other-relative|Unmarried",
    "race": "White|Asian-Pac-Islander|Amer-Indian-Eskimo|Other|Black",
    "sex": "Female|Male",
    "capital_gain": "0|114-99999",
    "capital_loss": "0|155-4356",
    "hours_per_week": "1-34|35-39|40|41-47|48-99",
    "native_country": "United-States|Cambodia|England|Puerto-Rico|Canada|Germany|"
    "Outlying-US(Guam-USVI-etc)|India|Japan|Greece|South|China|Cuba|Iran|Honduras|Philippines|"
    "Italy|Poland|Jamaica|Vietnam|Mexico|Portugal|Ireland|France|Dominican-Republic|Laos|Ecuador|"
    "Taiwan|Haiti|Columbia|Hungary|Guatemala|Nicaragua|Scotland|Thailand|Yugoslavia|El-Salvador|"
    "Trinadad&Tobago|Peru|Hong|Holand-Netherlands",
}


def main() -> None:
    """Write both parts."""
    split = a9a()
    for part, rows in (("train", split.train), ("test", split.test)):
        columns: dict[str, pa.Array] = {}
        first = 0
        for name, text in VALUES.items():
            values = text.split("|")
            flags = rows.X[:, first : first + len(values)].toarray()
            codes = pa.array(flags.argmax(axis=1).astype(np.int8), mask=~flags.any(axis=1))
            columns[name] = pa.DictionaryArray.from_arrays(codes, pa.array(values))
            first += len(values)
        columns["label"] = pa.array(rows.y)
        path = FOLDER / f"adult-{part}.parquet"
        pq.write_table(pa.table(columns), path, compression="zstd", compression_level=19)


if __name__ == "__main__":
    main()
