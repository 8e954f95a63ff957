"""Questions with labelled choices, in the forms in which ARC and OpenBookQA are passed around."""

from string import ascii_uppercase
from typing import Any

from autocomp.evaluate.tasks.sources import Record, are_texts

FORMS = (
    "a question with choices: {'question', 'choices': {'text': […], 'label': […]}, 'answerKey'}, "
    "{'question': {'stem', 'choices': [{'text', 'label'}, …]}, 'answerKey'} or "
    "{'question', 'choices': […], 'gold': index}"
)


def question_of(record: Record, name: str = "question") -> tuple[str, dict[str, list[str]], str]:
    """Return question, choices and the label of the right one, as the hub has them.

    Args:
        record: The hub's form; the release's, whose question holds stem and choices; or a list of
            choices with the index of the right one.
        name: The hub's column of the question.

    Returns:
        The question, ``{"text": […], "label": […]}`` and a label.

    Raises:
        ConfigError: If it is neither, a text is empty, or no choice has the right label.
    """
    question, choices = record.values.get(name), record.values.get("choices")
    key = record.values.get("answerKey")
    if isinstance(record.values.get("question"), dict):
        question, choices = (record.values["question"].get(part) for part in ("stem", "choices"))
        choices = _columns(choices)
    elif isinstance(choices, list):
        question, gold = record.values.get("question"), record.values.get("gold")
        if isinstance(gold, int) and 0 <= gold < len(choices) <= len(ascii_uppercase):
            key = ascii_uppercase[gold]
        choices = {"text": choices, "label": list(ascii_uppercase[: len(choices)])}
    if (
        not isinstance(question, str)
        or not question.strip()
        or not isinstance(choices, dict)
        or not are_texts(choices.get("text"))
        or not are_texts(choices.get("label"))
        or len(choices["text"]) != len(choices["label"])
        or not isinstance(key, str)
        or key.strip() not in choices["label"]
    ):
        raise record.error(FORMS)
    return question, {part: choices[part] for part in ("text", "label")}, key.strip()


def _columns(choices: Any) -> Any:
    """Return a list of labelled choices as columns; what is no such list as it is."""
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        return choices
    return {part: [choice.get(part) for choice in choices] for part in ("text", "label")}
