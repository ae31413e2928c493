// Which settings a pipeline has in an input mode, with ranges and defaults. Pure: schema in, data out.
// Names are those of the HTTP interface.

/** Settings that take effect when the pipeline is loaded; all others may change while streaming. */
const LOAD_FIELDS = ["height", "width", "base_seed", "quantization", "vace_enabled"];

/**
 * The settings of `entry` (one pipeline of the schemas answer) in `mode`.
 * Returns name -> {value: the default, and min, max, step for numbers}.
 */
export function fieldsOf(entry, mode) {
  const properties = entry.config_schema?.properties ?? {};
  const overrides = entry.mode_defaults?.[mode] ?? {};
  const standard = (name, fallback) => overrides[name] ?? properties[name]?.default ?? fallback;
  const fields = {};
  if (isLoadParameter(entry, "height")) {
    for (const name of ["height", "width"]) fields[name] = { value: standard(name, 512), ...range(properties[name]) };
  }
  if (isLoadParameter(entry, "base_seed")) fields.base_seed = { value: standard("base_seed", 42), min: 0, step: 1 };
  if (entry.supports_quantization) fields.quantization = { value: "auto" };
  if (entry.supports_vace) {
    fields.vace_enabled = { value: mode === "text" && entry.vace_default !== false };
    fields.vace_context_scale = { value: standard("vace_context_scale", 1), min: 0, max: 2, step: 0.01 };
    if (mode === "video") {
      fields.vace_use_input_video = { value: true };
      fields.vace_preprocessor = { value: "none" };
    }
  }
  const steps = standard("denoising_steps", null);
  if (steps) fields.denoising_step_list = { value: steps };
  // In text mode the server ignores noise settings.
  const noise = standard("noise_scale", null);
  if (mode === "video" && noise !== null) {
    fields.noise_scale = { value: noise, min: 0, max: 1, step: 0.01 };
    fields.noise_controller = { value: standard("noise_controller", true) };
  }
  if (entry.supports_cache_management) fields.manage_cache = { value: standard("manage_cache", true) };
  if (entry.supports_kv_cache_bias) {
    fields.kv_cache_attention_bias = { value: standard("kv_cache_attention_bias", 0.3), min: 0.01, max: 1, step: 0.01 };
  }
  if (entry.supports_prompts) {
    const chunks = overrides.default_temporal_interpolation_steps ?? entry.default_temporal_interpolation_steps;
    fields.prompt_interpolation_method = { value: entry.default_spatial_interpolation_method ?? "linear" };
    fields.transition_steps = { value: chunks ?? 0, min: 0, max: 64, step: 1 };
    fields.transition_method = { value: entry.default_temporal_interpolation_method ?? "linear" };
  }
  return fields;
}

/** Passthrough lists size and seed in its schema but does nothing with them: only marked ones count. */
function isLoadParameter(entry, name) {
  const property = entry.config_schema?.properties?.[name];
  return property !== undefined && (property.ui?.is_load_param ?? Boolean(entry.requires_models));
}

function range(property) {
  return { min: property.minimum ?? 1, max: property.maximum ?? 4096, step: property.multipleOf ?? 1 };
}

/** The valid value nearest to `number` for a field with min, max and step. */
export function snap(number, { min = -Infinity, max = Infinity, step = 1 }) {
  const lowest = Math.ceil(min / step) * step;
  const highest = Math.floor(max / step) * step;
  return Math.min(Math.max(Math.round(number / step) * step, lowest), highest);
}

/** What to send as `load_params`. A default size outside the published range is left to the server. */
export function loadParams(fields, values) {
  const params = {};
  for (const name of LOAD_FIELDS) {
    if (!(name in fields)) continue;
    const value = values[name];
    const isSize = name === "height" || name === "width";
    if (isSize && value === fields[name].value && snap(value, fields[name]) !== value) continue;
    if (name === "quantization" && value === "auto") continue;
    params[name] = name === "quantization" && value === "none" ? null : value;
  }
  return params;
}

/** What to send as `initialParameters`, and again after another pipeline was loaded under a stream. */
export function streamParameters(fields, values, mode, prompts) {
  const parameters = { input_mode: mode };
  if ("prompt_interpolation_method" in fields) {
    parameters.prompts = usablePrompts(prompts);
    parameters.prompt_interpolation_method = values.prompt_interpolation_method;
  }
  const live = ["denoising_step_list", "noise_scale", "noise_controller", "manage_cache", "kv_cache_attention_bias"];
  for (const name of live) if (name in fields) parameters[name] = values[name];
  const guided = ["vace_context_scale", "vace_use_input_video", "vace_preprocessor"];
  if (values.vace_enabled) for (const name of guided) if (name in fields) parameters[name] = values[name];
  return parameters;
}

/** The message for changed prompts: a jump, or a transition of that many chunks. */
export function promptUpdate(values, prompts) {
  const usable = usablePrompts(prompts);
  const blend = { prompt_interpolation_method: values.prompt_interpolation_method };
  if (values.transition_steps < 1) return { prompts: usable, ...blend };
  const transition = {
    target_prompts: usable,
    num_steps: values.transition_steps,
    temporal_interpolation_method: values.transition_method,
  };
  return { transition, ...blend };
}

/** Any form of prompts that the server takes (text, texts, objects) as rows with weights of at most 100. */
export function promptRows(prompts) {
  const rows = [prompts].flat().map((prompt) => (typeof prompt === "string" ? { text: prompt } : prompt));
  const largest = Math.max(...rows.map(({ weight = 1 }) => weight)) || 1;
  return rows.map(({ text, weight = 1 }) => ({ text, weight: Math.round((weight / largest) * 100) }));
}

/** Empty rows are left out; an empty list is not allowed, so one empty prompt stands for "none". */
function usablePrompts(prompts) {
  const written = prompts.filter((prompt) => prompt.text.trim());
  return written.length ? written.map(({ text, weight }) => ({ text, weight })) : [{ text: "", weight: 100 }];
}

/** Denoising steps in the form the server takes: whole numbers 1..1000, descending, no doubles, 1 to 10 of them. */
export function tidySteps(steps) {
  const whole = steps.filter(Number.isFinite).map((step) => Math.min(Math.max(Math.round(step), 1), 1000));
  return [...new Set(whole)].sort((a, b) => b - a).slice(0, 10);
}
