"""Run by another Python: loads a version as a server would and prints how it answers what is on record."""

import json
import sys
from pathlib import Path

import mlflow


def main(uri: str) -> None:
    folder = Path(mlflow.artifacts.download_artifacts(uri))
    answers = json.loads((folder / "artifacts/release/answers.json").read_text(encoding="utf-8"))
    model = mlflow.pyfunc.load_model(uri)
    found = [model.predict({"messages": row["messages"]})["choices"][0]["message"]["content"] for row in answers]
    ours = {name: module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "pipelines"}
    told = {"found": found, "recorded": [row["answer"] for row in answers], "code": ours, "folder": str(folder)}
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1])
