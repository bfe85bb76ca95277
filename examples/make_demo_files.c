/*
 * Makes a base model and two adapters with the names and shapes of SDXL's denoiser, for the demo and for timing:
 *
 *     make_demo_files FOLDER            a small excerpt, channels divided by 8 (a few hundred kB)
 *     make_demo_files FOLDER --large    all 1680 tensors in bf16 (5.1 GB), rank 16
 *
 * FOLDER/base.safetensors     tensors as in a single-file checkpoint, "model.diffusion_model." in front
 * FOLDER/style.safetensors    kohya names: LoCon on attention, with DoRA on its output projections; norm differences
 * FOLDER/detail.safetensors   LoHa on 3x3 convolutions, LoCon on 1x1 ones, LoKr on the feed-forward layers
 *
 * Values are random, small and not zero. All tensors borrow from one buffer, so 5 GB need no 5 GB of memory.
 */
#include <lycoris.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_CHANNELS = 1280, NAME_SIZE = 256 };

typedef struct demo {
  lyc_writer *base, *style, *detail;
  const uint16_t *values; /* bf16, uniform in (-1/32, 1/32) */
  int64_t value_count;
  float *numbers; /* f32 scalars and magnitudes; tensors borrow them too */
  size_t number_count, number_capacity;
  int64_t divisor; /* of all channel counts */
  int excerpt;     /* only input blocks 3 to 5 */
  int64_t rank, factor;
} demo;

static void check(lyc_status status) {
  if (status == LYC_OK) return;
  fprintf(stderr, "make_demo_files: %s\n", lyc_last_error_message());
  exit(1);
}

/* Some values for a tensor; a different place of the buffer for each name. */
static const uint16_t *values_for(const demo *d, const char *name, int64_t count) {
  uint64_t hash = 14695981039346656037u;
  for (; *name; ++name) hash = (hash ^ (unsigned char)*name) * 1099511628211u;
  return d->values + (int64_t)(hash % (uint64_t)(d->value_count - count));
}

static void add(const demo *d, lyc_writer *writer, const char *name, const int64_t *shape, size_t ndim) {
  lyc_tensor tensor;
  int64_t count = 1;
  size_t i;
  for (i = 0; i < ndim; ++i) count *= shape[i];
  check(lyc_tensor_init(&tensor, (void *)values_for(d, name, count), LYC_DTYPE_BF16, shape, ndim));
  check(lyc_writer_add(writer, name, &tensor));
}

/* f32 numbers that are all `value`, of shape [count, 1...] or, for count 0, []. */
static void add_numbers(demo *d, lyc_writer *writer, const char *name, float value, int64_t count, size_t ndim) {
  int64_t shape[5] = {0, 1, 1, 1, 1};
  lyc_tensor tensor;
  float *at = d->numbers + d->number_count;
  size_t i, n = count ? (size_t)count : 1;
  if (d->number_count + n > d->number_capacity) {
    fprintf(stderr, "make_demo_files: too many numbers\n");
    exit(1);
  }
  for (i = 0; i < n; ++i) at[i] = value;
  d->number_count += n;
  shape[0] = count;
  check(lyc_tensor_init(&tensor, at, LYC_DTYPE_F32, shape, count ? ndim : 0));
  check(lyc_writer_add(writer, name, &tensor));
}

/* "lora_unet_input_blocks_4_1_proj_in.<suffix>": kohya's spelling of a layer. */
static const char *key(const char *layer, const char *suffix, char *buffer) {
  char *c;
  snprintf(buffer, NAME_SIZE, "lora_unet_%s", layer);
  for (c = buffer; *c; ++c)
    if (*c == '.') *c = '_';
  strncat(buffer, ".", NAME_SIZE - strlen(buffer) - 1);
  strncat(buffer, suffix, NAME_SIZE - strlen(buffer) - 1);
  return buffer;
}

static void add_alpha(demo *d, lyc_writer *writer, const char *layer) {
  char name[NAME_SIZE];
  add_numbers(d, writer, key(layer, "alpha", name), 0.5f * (float)d->rank, 0, 0);
}

/* [out, in] for k = 0, else [out, in, k, k]. */
static void add_locon(demo *d, lyc_writer *writer, const char *layer, int64_t out, int64_t in, int64_t k, int dora) {
  char name[NAME_SIZE];
  int64_t up[4] = {0, 0, 1, 1}, down[4];
  const size_t ndim = k ? 4 : 2;
  up[0] = out, up[1] = d->rank;
  down[0] = d->rank, down[1] = in, down[2] = down[3] = k;
  add(d, writer, key(layer, "lora_up.weight", name), up, ndim);
  add(d, writer, key(layer, "lora_down.weight", name), down, ndim);
  add_alpha(d, writer, layer);
  if (dora) { /* about the norm of a row of uniform values, and a little more */
    const float norm = (float)sqrt((double)in * (double)(k ? k * k : 1) / 3.0) / 32.0f;
    add_numbers(d, writer, key(layer, "dora_scale", name), 1.02f * norm, out, ndim);
  }
}

static void add_loha(demo *d, lyc_writer *writer, const char *layer, int64_t out, int64_t in, int64_t k) {
  char name[NAME_SIZE];
  int64_t a[2], b[2];
  a[0] = out, a[1] = d->rank;
  b[0] = d->rank, b[1] = in * k * k;
  add(d, writer, key(layer, "hada_w1_a", name), a, 2);
  add(d, writer, key(layer, "hada_w1_b", name), b, 2);
  add(d, writer, key(layer, "hada_w2_a", name), a, 2);
  add(d, writer, key(layer, "hada_w2_b", name), b, 2);
  add_alpha(d, writer, layer);
}

static void add_lokr(demo *d, lyc_writer *writer, const char *layer, int64_t out, int64_t in) {
  char name[NAME_SIZE];
  int64_t w1[2], w2[2];
  w1[0] = w1[1] = d->factor;
  w2[0] = out / d->factor, w2[1] = in / d->factor;
  add(d, writer, key(layer, "lokr_w1", name), w1, 2);
  add(d, writer, key(layer, "lokr_w2", name), w2, 2);
  add_alpha(d, writer, layer);
}

enum kind { CONV, LINEAR, PROJECTION, OUTPUT, FEED_FORWARD, NORM };

/* One layer of the base, and what the adapters do to it. bias: whether it has one. */
static void layer(demo *d, enum kind kind, int bias, int64_t out, int64_t in, int64_t k, const char *format,
                  const char *block, int index) {
  char path[NAME_SIZE], name[NAME_SIZE + 64];
  int64_t shape[4];
  shape[0] = out, shape[1] = in, shape[2] = shape[3] = k;
  snprintf(path, sizeof path, format, block, index);
  snprintf(name, sizeof name, "model.diffusion_model.%s.weight", path);
  add(d, d->base, name, shape, kind == NORM ? 1 : k ? 4 : 2);
  snprintf(name, sizeof name, "model.diffusion_model.%s.bias", path);
  if (bias) add(d, d->base, name, shape, 1);
  switch (kind) {
    case CONV:
      if (k > 1)
        add_loha(d, d->detail, path, out, in, k);
      else
        add_locon(d, d->detail, path, out, in, k, 0);
      break;
    case PROJECTION:
      add_locon(d, d->style, path, out, in, k, 0);
      break;
    case OUTPUT:
      add_locon(d, d->style, path, out, in, k, 1);
      break;
    case FEED_FORWARD:
      add_lokr(d, d->detail, path, out, in);
      break;
    case NORM:
      add(d, d->style, key(path, "w_norm", name), shape, 1);
      add(d, d->style, key(path, "b_norm", name), shape, 1);
      break;
    case LINEAR:
      break;
  }
}

static void residual(demo *d, const char *block, int64_t in, int64_t out) {
  const int64_t embedding = MAX_CHANNELS / d->divisor;
  layer(d, NORM, 1, in, 1, 0, "%s.0.in_layers.0", block, 0);
  layer(d, CONV, 1, out, in, 3, "%s.0.in_layers.2", block, 0);
  layer(d, LINEAR, 1, out, embedding, 0, "%s.0.emb_layers.1", block, 0);
  layer(d, NORM, 1, out, 1, 0, "%s.0.out_layers.0", block, 0);
  layer(d, CONV, 1, out, out, 3, "%s.0.out_layers.3", block, 0);
  if (in != out) layer(d, CONV, 1, out, in, 1, "%s.0.skip_connection", block, 0);
}

static void transformer(demo *d, const char *block, int64_t c, int depth) {
  const int64_t context = 2048 / d->divisor;
  int i;
  layer(d, NORM, 1, c, 1, 0, "%s.norm", block, 0);
  layer(d, PROJECTION, 1, c, c, 0, "%s.proj_in", block, 0);
  for (i = 0; i < depth; ++i) {
    layer(d, PROJECTION, 0, c, c, 0, "%s.transformer_blocks.%d.attn1.to_q", block, i);
    layer(d, PROJECTION, 0, c, c, 0, "%s.transformer_blocks.%d.attn1.to_k", block, i);
    layer(d, PROJECTION, 0, c, c, 0, "%s.transformer_blocks.%d.attn1.to_v", block, i);
    layer(d, OUTPUT, 1, c, c, 0, "%s.transformer_blocks.%d.attn1.to_out.0", block, i);
    layer(d, FEED_FORWARD, 1, 8 * c, c, 0, "%s.transformer_blocks.%d.ff.net.0.proj", block, i);
    layer(d, FEED_FORWARD, 1, c, 4 * c, 0, "%s.transformer_blocks.%d.ff.net.2", block, i);
    layer(d, PROJECTION, 0, c, c, 0, "%s.transformer_blocks.%d.attn2.to_q", block, i);
    layer(d, PROJECTION, 0, c, context, 0, "%s.transformer_blocks.%d.attn2.to_k", block, i);
    layer(d, PROJECTION, 0, c, context, 0, "%s.transformer_blocks.%d.attn2.to_v", block, i);
    layer(d, OUTPUT, 1, c, c, 0, "%s.transformer_blocks.%d.attn2.to_out.0", block, i);
    layer(d, NORM, 1, c, 1, 0, "%s.transformer_blocks.%d.norm1", block, i);
    layer(d, NORM, 1, c, 1, 0, "%s.transformer_blocks.%d.norm2", block, i);
    layer(d, NORM, 1, c, 1, 0, "%s.transformer_blocks.%d.norm3", block, i);
  }
  layer(d, PROJECTION, 1, c, c, 0, "%s.proj_out", block, 0);
}

/* The denoiser's blocks in order. Level 0, 1, 2 have 320, 640, 1280 channels and transformers 0, 2, 10 deep. */
static void input_block(demo *d, int number, int64_t in, int64_t out, int depth) {
  char block[32], attention[32];
  snprintf(block, sizeof block, "input_blocks.%d", number);
  snprintf(attention, sizeof attention, "input_blocks.%d.1", number);
  residual(d, block, in, out);
  if (depth) transformer(d, attention, out, depth);
}

static void output_block(demo *d, int number, int64_t in, int64_t out, int depth, int upsample) {
  char block[32], attention[32];
  snprintf(block, sizeof block, "output_blocks.%d", number);
  snprintf(attention, sizeof attention, "output_blocks.%d.1", number);
  residual(d, block, in, out);
  if (depth) transformer(d, attention, out, depth);
  if (upsample) layer(d, CONV, 1, out, out, 3, "%s.2.conv", block, 0);
}

static void middle_block(demo *d, int64_t c) {
  const char *const parts[2] = {"middle_block.0", "middle_block.2"};
  int i;
  for (i = 0; i < 2; ++i) {
    layer(d, NORM, 1, c, 1, 0, "%s.in_layers.0", parts[i], 0);
    layer(d, CONV, 1, c, c, 3, "%s.in_layers.2", parts[i], 0);
    layer(d, LINEAR, 1, c, c, 0, "%s.emb_layers.1", parts[i], 0);
    layer(d, NORM, 1, c, 1, 0, "%s.out_layers.0", parts[i], 0);
    layer(d, CONV, 1, c, c, 3, "%s.out_layers.3", parts[i], 0);
  }
  transformer(d, "middle_block.1", c, 10);
}

static void denoiser(demo *d) {
  const int64_t a = 320 / d->divisor, b = 640 / d->divisor, c = 1280 / d->divisor;
  layer(d, CONV, 1, a, a, 3, "%s.3.0.op", "input_blocks", 0);
  input_block(d, 4, a, b, 2);
  input_block(d, 5, b, b, 2);
  if (d->excerpt) return;
  layer(d, LINEAR, 1, c, a, 0, "%s.0", "time_embed", 0);
  layer(d, LINEAR, 1, c, c, 0, "%s.2", "time_embed", 0);
  layer(d, LINEAR, 1, c, 2816 / d->divisor, 0, "%s.0.0", "label_emb", 0);
  layer(d, LINEAR, 1, c, c, 0, "%s.0.2", "label_emb", 0);
  layer(d, CONV, 1, a, 4, 3, "%s.0.0", "input_blocks", 0);
  input_block(d, 1, a, a, 0);
  input_block(d, 2, a, a, 0);
  layer(d, CONV, 1, b, b, 3, "%s.6.0.op", "input_blocks", 0);
  input_block(d, 7, b, c, 10);
  input_block(d, 8, c, c, 10);
  middle_block(d, c);
  output_block(d, 0, c + c, c, 10, 0);
  output_block(d, 1, c + c, c, 10, 0);
  output_block(d, 2, c + b, c, 10, 1);
  output_block(d, 3, c + b, b, 2, 0);
  output_block(d, 4, b + b, b, 2, 0);
  output_block(d, 5, b + a, b, 2, 1);
  output_block(d, 6, b + a, a, 0, 0);
  output_block(d, 7, a + a, a, 0, 0);
  output_block(d, 8, a + a, a, 0, 0);
  layer(d, NORM, 1, a, 1, 0, "%s.0", "out", 0);
  layer(d, CONV, 1, 4, a, 3, "%s.2", "out", 0);
}

/* Uniform in (-1/32, 1/32) and never 0, as bf16. */
static uint16_t *random_values(int64_t count) {
  uint16_t *values = malloc((size_t)count * sizeof *values);
  uint64_t state = 88172645463325252u;
  int64_t i;
  if (!values) return NULL;
  for (i = 0; i < count; ++i) {
    float value;
    uint32_t bits;
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    value = ((float)(state >> 40) + 0.5f) / 268435456.0f - 0.03125f;
    memcpy(&bits, &value, sizeof bits);
    values[i] = (uint16_t)(bits >> 16);
  }
  return values;
}

static lyc_writer *writer(const char *folder, const char *name) {
  char path[4096];
  lyc_writer *result;
  snprintf(path, sizeof path, "%s/%s", folder, name);
  check(lyc_writer_create(path, &result));
  return result;
}

int main(int argc, char **argv) {
  const int large = argc == 3 && strcmp(argv[2], "--large") == 0;
  uint16_t *values;
  demo d = {0};
  if (argc != 2 && !large) {
    fprintf(stderr, "usage: make_demo_files FOLDER [--large]\n");
    return 2;
  }
  d.divisor = large ? 1 : 8;
  d.excerpt = !large;
  d.rank = large ? 16 : 4;
  d.factor = 8;
  d.value_count = ((int64_t)32 << 20) / (large ? 1 : 16);
  d.values = values = random_values(d.value_count);
  d.number_capacity = 1 << 20;
  d.numbers = malloc(d.number_capacity * sizeof *d.numbers);
  if (!d.values || !d.numbers) {
    fprintf(stderr, "make_demo_files: out of memory\n");
    return 1;
  }
  d.base = writer(argv[1], "base.safetensors");
  d.style = writer(argv[1], "style.safetensors");
  d.detail = writer(argv[1], "detail.safetensors");
  check(lyc_writer_set_metadata(d.base, "format", "pt"));
  check(lyc_writer_set_metadata(d.style, "ss_network_module", "lycoris.kohya"));
  check(lyc_writer_set_metadata(d.detail, "ss_network_module", "lycoris.kohya"));
  denoiser(&d);
  check(lyc_writer_finish(d.base));
  check(lyc_writer_finish(d.style));
  check(lyc_writer_finish(d.detail));
  lyc_writer_release(d.base);
  lyc_writer_release(d.style);
  lyc_writer_release(d.detail);
  free(values);
  free(d.numbers);
  return 0;
}
