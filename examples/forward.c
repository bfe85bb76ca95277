/*
 * An engine's layer with an adapter, its weight untouched: y = op(x, W + dW) + bias in one call, or what the adapter
 * adds onto a y that the engine has made itself. Strength is an argument; memory is asked for once, before.
 *
 *     forward
 */
#include <lycoris.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { ROWS = 5, IN = 8, OUT = 6, RANK = 2 };

static void check(lyc_status status) {
  if (status == LYC_OK) return;
  fprintf(stderr, "forward: %s\n", lyc_last_error_message());
  exit(1);
}

/* A matrix with values of its own. */
static lyc_tensor matrix(float *values, int64_t rows, int64_t columns, float seed) {
  const int64_t shape[] = {rows, columns};
  lyc_tensor tensor;
  check(lyc_tensor_init(&tensor, values, LYC_DTYPE_F32, shape, 2));
  for (int64_t i = 0; i < rows * columns; ++i) values[i] = sinf(seed + (float)i);
  return tensor;
}

int main(void) {
  static float x_values[ROWS * IN], w_values[OUT * IN], up_values[OUT * RANK], down_values[RANK * IN];
  static float y_values[ROWS * OUT], added_values[ROWS * OUT];
  const lyc_tensor x = matrix(x_values, ROWS, IN, 1), weight = matrix(w_values, OUT, IN, 2);
  const lyc_tensor y = matrix(y_values, ROWS, OUT, 3), added = matrix(added_values, ROWS, OUT, 4);
  const char *const names[] = {"lora_up.weight", "lora_down.weight"};
  const lyc_tensor factors[] = {matrix(up_values, OUT, RANK, 5), matrix(down_values, RANK, IN, 6)};
  lyc_context *context;
  lyc_module *module;
  check(lyc_context_create(NULL, &context));
  check(lyc_module_create_from_tensors(context, NULL, names, factors, 2, &module));

  lyc_exec exec;
  lyc_exec_init(&exec, sizeof exec);
  check(lyc_forward_workspace_size(module, NULL, &x, &weight, NULL, &y, &exec.workspace_size));
  exec.workspace = aligned_alloc(256, exec.workspace_size + 256 - exec.workspace_size % 256);

  /* In one call; and the layer alone, then the adapter on top. A layer that is not linear is described by lyc_layer. */
  check(lyc_forward_fused(module, NULL, &x, &weight, NULL, 0.8f, &y, &exec));
  check(lyc_forward_fused(module, NULL, &x, &weight, NULL, 0.0f, &added, &exec));
  check(lyc_forward(module, NULL, &x, NULL, 0.8f, &added, &exec));
  float difference = 0;
  for (int i = 0; i < ROWS * OUT; ++i) difference = fmaxf(difference, fabsf(y_values[i] - added_values[i]));
  printf("largest difference: %g\n", (double)difference);

  free(exec.workspace);
  lyc_module_release(module);
  lyc_context_release(context);
  return difference < 1e-5f ? 0 : 1;
}
