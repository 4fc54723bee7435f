"""The language of a text, as py3langid's naive Bayes over byte n-grams finds it."""

from collections.abc import Sequence

from pipelines.config.nearest import did_you_mean
from pipelines.errors import UserError

# What the model calls numbers, codes and markup: no language, so no other language either.
NO_LANGUAGE = "zxx"


class Languages:
    """The wanted languages, by ISO 639-1 code, and how certain another one must be.

    All 140 languages of the model compete, whatever is wanted: a model that knew only the wanted ones would call
    every text one of them. Model: M. Lui and T. Baldwin, "langid.py", ACL 2012, as py3langid 0.4 retrained it.
    """

    def __init__(self, wanted: Sequence[str], confidence: float) -> None:
        """`confidence` is a probability; raises UserError for a code that the model doesn't know."""
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        self._identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        self._wanted = {*wanted, NO_LANGUAGE}
        self._confidence = confidence
        valid = sorted(label for label in self._identifier.labels if len(label) == 2)
        for code in wanted:
            if code not in valid:
                raise UserError(
                    f"prepare.filters.languages: expected codes among {', '.join(valid)}, got {code!r}"
                    + did_you_mean(code, valid)
                )

    def foreign(self, text: str) -> str | None:
        """Another language's code where it is at least `confidence` certain, else None.

        A few words are rarely enough for certainty, so short texts are mostly let through.
        """
        language, probability = self._identifier.classify(text)
        return language if language not in self._wanted and probability >= self._confidence else None


class Certainty:
    """How sure the same model is that a text is in a language."""

    def __init__(self) -> None:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        self._identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

    def best(self, text: str) -> str:
        """The code of the language that the text is most likely in."""
        return str(self._identifier.classify(text)[0])

    def of(self, text: str, language: str) -> float:
        """A probability; 1 for a text without letters, such as a number: no language is wrong for it."""
        if not any(letter.isalpha() for letter in text):
            return 1.0
        ranked = dict(self._identifier.rank(text))
        return float(min(1.0, ranked.get(language, 0.0) + ranked.get(NO_LANGUAGE, 0.0)))
