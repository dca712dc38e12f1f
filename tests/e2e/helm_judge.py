"""Checks what charts render, as a separate program, for the packages that only it needs.

Run by the interpreter of a virtual environment with PyYAML, kubernetes-validate, cel-python and
jsonpatch; see tests/support/helm.py. Reads one JSON request from stdin, prints one response:

    {"do": "parse", "text": YAML}                   -> the documents
    {"do": "validate", "objects": [...], "version"} -> [[object's name, message], ...]
    {"do": "versions"}                              -> the known Kubernetes versions
    {"do": "admit", "documents": [...], "pods": [{"namespace": labels, "pod": POD}, ...]}
        -> [{"pod": POD after the mutating policy, "warnings": [...]}, ...]

`admit` evaluates the chart's policies as an API server does, with another implementation of CEL.
The policies' typed objects (`Object.spec...{}`, `JSONPatch{}`) are turned into maps first.
"""

import importlib
import json
import re
import sys
from typing import Any

Json = Any
Value = Any  # of the CEL library, whose classes are known at run time only
_STRING = re.compile(r'("(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\')')
_TYPE = re.compile(r"\b(?:Object(?:\.\w+)*|JSONPatch)\{")
_FIELD = re.compile(r"([{,]\s*)(\w+):")


def parse(request: Json) -> Json:
    """Return the documents of a YAML text, without empty ones."""
    yaml = importlib.import_module("yaml")
    return [document for document in yaml.safe_load_all(request["text"]) if document]


def validate(request: Json) -> Json:
    """Return the strict schema violations of objects for a Kubernetes version."""
    module = importlib.import_module("kubernetes_validate")
    found = []
    for item in request["objects"]:
        try:
            module.validate(item, request["version"], strict=True)
        except (module.ValidationError, module.SchemaNotFoundError) as error:
            found.append([item["metadata"]["name"], str(error)])
    return found


def versions(_: Json) -> Json:
    """Return the Kubernetes versions with available schemas, oldest first."""
    known: list[str] = importlib.import_module("kubernetes_validate.utils").all_versions()
    return sorted(known, key=lambda version: [int(part) for part in version.split(".")[:2]])


def untyped(expression: str) -> str:
    """Rewrite typed objects in CEL as maps."""
    parts = _STRING.split(expression)
    for number in range(0, len(parts), 2):
        parts[number] = _FIELD.sub(r'\1"\2":', _TYPE.sub("{", parts[number]))
    return "".join(parts)


class Cel:
    """Evaluates expressions about one pod, with the variables of a policy."""

    def __init__(self, pod: Json) -> None:
        self._celpy = importlib.import_module("celpy")
        adapter = importlib.import_module("celpy.adapter")
        types = importlib.import_module("celpy.celtypes")
        self._variables = types.MapType()
        self._name = types.StringType
        self._context = {
            "object": adapter.json_to_cel(pod),
            "variables": self._variables,
        }
        number = types.IntType

        def index_of(items: Value, wanted: Value) -> Value:
            found = [at for at, item in enumerate(items) if item == wanted]
            return number(found[0] if found else -1)

        def last_index_of(items: Value, wanted: Value) -> Value:
            found = [at for at, item in enumerate(items) if item == wanted]
            return number(found[-1] if found else -1)

        def substring(text: Value, start: Value) -> Value:
            return types.StringType(text[start:])

        # Kubernetes' own additions to CEL.
        self._functions = {
            "indexOf": index_of,
            "lastIndexOf": last_index_of,
            "substring": substring,
        }
        self._bool = types.BoolType

    def evaluate(self, expression: str) -> Value:
        """Return the value of an expression; raises CEL's error."""
        environment = self._celpy.Environment()
        program = environment.program(
            environment.compile(untyped(expression)), functions=self._functions
        )
        return program.evaluate(self._context)

    def define(self, name: str, expression: str) -> None:
        """Add a variable of the policy."""
        self._variables[self._name(name)] = self.evaluate(expression)

    def plain(self, expression: str) -> Json:
        """Return the value of an expression as JSON."""
        return self._json(self.evaluate(expression))

    def _json(self, value: Value) -> Json:
        if isinstance(value, list):
            return [self._json(item) for item in value]
        if isinstance(value, dict):
            return {str(key): self._json(item) for key, item in value.items()}
        # The library's own encoder turns booleans in joined lists into numbers.
        return bool(value) if isinstance(value, self._bool) else value


def selected(selector: Json, labels: Json) -> bool:
    """Whether a label selector matches an object with `labels`."""
    if any(labels.get(k) != v for k, v in selector.get("matchLabels", {}).items()):
        return False
    for expression in selector.get("matchExpressions", []):
        key, values = expression["key"], expression.get("values", [])
        holds = {
            "In": labels.get(key) in values,
            "NotIn": labels.get(key) not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }[expression["operator"]]
        if not holds:
            return False
    return True


def matches(policy: Json, namespace: Json, pod: Json) -> bool:
    """Whether a policy applies to the creation of a pod."""
    rules = policy["spec"]["matchConstraints"]
    labels = pod["metadata"].get("labels", {})
    return (
        selected(rules["namespaceSelector"], namespace)
        and selected(rules["objectSelector"], labels)
        and all(
            Cel(pod).evaluate(condition["expression"])
            for condition in policy["spec"].get("matchConditions", [])
        )
    )


def mutated(policy: Json, pod: Json) -> Json:
    """Return a pod after all mutations of a policy."""
    for mutation in policy["spec"]["mutations"]:
        cel = Cel(pod)
        for variable in policy["spec"].get("variables", []):
            cel.define(variable["name"], variable["expression"])
        patch = cel.plain(mutation["jsonPatch"]["expression"])
        pod = importlib.import_module("jsonpatch").apply_patch(pod, patch)
    return pod


def admit(request: Json) -> Json:
    """Return every pod after the bound policies, with the warnings of the validating ones."""
    documents = request["documents"]
    bound = {d["spec"]["policyName"] for d in documents if d["kind"].endswith("PolicyBinding")}
    policies = [d for d in documents if d["metadata"]["name"] in bound]
    answers = []
    for case in request["pods"]:
        pod, namespace, warnings = case["pod"], case["namespace"], []
        for policy in policies:
            if policy["kind"] == "MutatingAdmissionPolicy" and matches(policy, namespace, pod):
                pod = mutated(policy, pod)
        for policy in policies:
            if policy["kind"] == "ValidatingAdmissionPolicy" and matches(policy, namespace, pod):
                warnings += [
                    rule["message"]
                    for rule in policy["spec"]["validations"]
                    if not Cel(pod).evaluate(rule["expression"])
                ]
        answers.append({"pod": pod, "warnings": warnings})
    return answers


if __name__ == "__main__":
    question = json.load(sys.stdin)
    work = {"parse": parse, "validate": validate, "versions": versions, "admit": admit}
    json.dump(work[question["do"]](question), sys.stdout)
