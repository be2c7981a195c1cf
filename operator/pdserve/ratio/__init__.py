"""How many P/D groups, prefill and decode instances a scenario needs, and why (pure).

- `decide.decide(DecisionInput) -> Decision`: the whole loop as one function of recorded values;
  `decide.decide_placed(input, fits) -> (DecisionInput, Decision)` asks placement about each
  proposed shape and records its answers in the input.
- `initial.initial_counts(...) -> Counts`: size of a scenario that has no traffic yet.
- `learn.observe(LearnState, ScenarioSample) -> LearnState`: keeps the performance profile;
  `LearnState.profile()` is what `decide` takes.
- `records.to_json` / `records.from_json` / `records.replay`: everything as JSON, and again.
- `explain.sentence(reason)`: what a reason code means, for people.

Measured values come from `telemetry`; the result is applied by `controllers`, once per
`LoopSettings.fast_period`.
"""
