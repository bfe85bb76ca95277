//! What the header promises, as Rust sees it.
use std::ops::ControlFlow;
use std::path::PathBuf;

use lycoris::{
    inspect_file, merge_files, Algo, Batch, Context, DType, File, Item, Layout, MatchOptions, MergeOptions, Module,
    Network, Status, TensorMut, TensorRef, Writer,
};

const ROWS: usize = 5;
const COLUMNS: usize = 7;
const RANK: usize = 2;
const ALPHA: f32 = 3.0;

/// A LoRA of one layer, and what it does in plain Rust. All values are multiples of 1/8, so sums are exact in f32.
struct Layer {
    up: Vec<f32>,
    down: Vec<f32>,
    base: Vec<f32>,
}

impl Layer {
    fn new() -> Layer {
        let numbers = |count: usize, step: usize| (0..count).map(|i| ((i * step % 31) as f32 - 15.0) / 8.0).collect();
        Layer { up: numbers(ROWS * RANK, 7), down: numbers(RANK * COLUMNS, 11), base: numbers(ROWS * COLUMNS, 5) }
    }

    fn tensors(&self) -> Vec<(&'static str, TensorRef<'_>)> {
        static ALPHAS: [f32; 1] = [ALPHA];
        vec![
            ("lora_up.weight", TensorRef::new(&self.up, &[ROWS as i64, RANK as i64]).unwrap()),
            ("lora_down.weight", TensorRef::new(&self.down, &[RANK as i64, COLUMNS as i64]).unwrap()),
            ("alpha", TensorRef::new(&ALPHAS, &[]).unwrap()),
        ]
    }

    fn module(&self, context: &Context) -> Module {
        Module::from_tensors(context, &self.tensors()).unwrap()
    }

    fn merged(&self, multiplier: f32) -> Vec<f32> {
        let scale = ALPHA / RANK as f32;
        (0..ROWS * COLUMNS)
            .map(|i| {
                let (o, c) = (i / COLUMNS, i % COLUMNS);
                let sum: f32 = (0..RANK).map(|r| self.up[o * RANK + r] * self.down[r * COLUMNS + c]).sum();
                self.base[i] + multiplier * scale * sum
            })
            .collect()
    }
}

fn weight(data: &mut [f32]) -> TensorMut<'_> {
    TensorMut::new(data, &[ROWS as i64, COLUMNS as i64]).unwrap()
}

fn assert_near(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (i, (x, y)) in found.iter().zip(expected).enumerate() {
        assert!((x - y).abs() < 1e-5, "[{i}]: {x} is not {y}");
    }
}

fn context() -> Context {
    Context::cpu_with_threads(2).unwrap()
}

/// An empty folder for one test.
fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("lycoris-rust-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// An adapter, a base that belongs to it, and where the result goes.
fn files(name: &str, layer: &Layer) -> (PathBuf, PathBuf, PathBuf) {
    let folder = folder(name);
    let (adapter, base) = (folder.join("style.safetensors"), folder.join("model.safetensors"));
    let names: Vec<_> = layer.tensors().iter().map(|(name, _)| format!("lora_unet_mid_proj.{name}")).collect();
    let mut writer = Writer::create(&adapter).unwrap();
    for (name, (_, tensor)) in names.iter().zip(layer.tensors()) {
        writer.add(name, tensor).unwrap();
    }
    writer.set_metadata("ss_network_module", "networks.lora").unwrap();
    writer.finish().unwrap();
    let mut writer = Writer::create(&base).unwrap();
    writer.add("mid.proj.weight", TensorRef::new(&layer.base, &[ROWS as i64, COLUMNS as i64]).unwrap()).unwrap();
    writer.finish().unwrap();
    (adapter, base, folder.join("out.safetensors"))
}

fn merged_file(path: &PathBuf) -> Vec<f32> {
    let bytes = File::open(path).unwrap().read("mid.proj.weight").unwrap();
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

#[test]
fn context_and_version() {
    assert_eq!(context().threads().unwrap(), 2);
    assert!(lycoris::version().unwrap().split('.').count() == 3);
}

#[test]
fn files_are_written_and_read() {
    let path = folder("files").join("blé.safetensors");
    let layer = Layer::new();
    let mut writer = Writer::create(&path).unwrap();
    writer.add("a", TensorRef::new(&layer.base, &[35]).unwrap()).unwrap();
    writer.add("b", TensorRef::from_bits(DType::BF16, &[1, 2], &[2]).unwrap()).unwrap();
    writer.set_metadata("größe", "7").unwrap();
    assert_eq!(
        writer.add("a", TensorRef::new(&layer.up, &[10]).unwrap()).unwrap_err().status(),
        Status::ERROR_INVALID_ARGUMENT
    );
    writer.finish().unwrap();
    for file in [File::open(&path).unwrap(), File::from_bytes(std::fs::read(&path).unwrap()).unwrap()] {
        let mut names = file.names().unwrap();
        names.sort();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(file.describe("b").unwrap(), (DType::BF16, vec![2]));
        assert_eq!(file.read("b").unwrap(), [1, 0, 2, 0]);
        assert!(file.metadata().unwrap().contains(&("größe".to_owned(), "7".to_owned())));
    }
}

#[test]
fn errors_say_what_and_why() {
    let error = File::open("missing.safetensors").err().unwrap();
    assert_eq!((error.status(), error.native_code()), (Status::ERROR_NOT_FOUND, 2));
    assert!(error.to_string().contains("missing.safetensors"), "{error}");
    assert_eq!(File::from_bytes(vec![0xff; 16]).err().unwrap().status(), Status::ERROR_FORMAT);
    let error = Module::builder(Algo::LOCON).rank(-1).linear(8, 8).build(&context()).err().unwrap();
    assert!(error.message().contains("rank"), "{error}");
}

#[test]
fn slices_are_checked() {
    let data = [0f32; 6];
    assert_eq!(TensorRef::new(&data, &[7]).err().unwrap().status(), Status::ERROR_INVALID_ARGUMENT);
    let strided = TensorRef::new(&data, &[2, 2]).unwrap().strides(&[3, 1]).unwrap();
    assert_eq!(strided.shape(), [2, 2]);
    assert!(strided.strides(&[1]).is_err());
}

#[test]
fn merge_and_unmerge() {
    let layer = Layer::new();
    let module = layer.module(&context()); // the context goes first
    let info = module.info().unwrap();
    assert_eq!((info.algo, info.rank, info.scale), (Algo::LOCON, RANK as i32, (ALPHA / RANK as f32) as f64));
    let mut data = layer.base.clone();
    module.merge(&mut weight(&mut data), 0.25).unwrap();
    assert_near(&data, &layer.merged(0.25));
    module.unmerge(&mut weight(&mut data), 0.25).unwrap();
    assert_near(&data, &layer.base);

    let mut transposed = vec![0f32; ROWS * COLUMNS];
    let shape = [COLUMNS as i64, ROWS as i64];
    module.diff_weight(None, 1.0, &mut TensorMut::new(&mut transposed, &shape).unwrap().layout(Layout::HWIO)).unwrap();
    let delta: Vec<f32> = layer.merged(1.0).iter().zip(&layer.base).map(|(m, b)| m - b).collect();
    let expected: Vec<f32> = (0..ROWS * COLUMNS).map(|i| delta[i % ROWS * COLUMNS + i / ROWS]).collect();
    assert_near(&transposed, &expected);

    let mut small = [0f32; 9];
    let error = module.diff_weight(None, 1.0, &mut TensorMut::new(&mut small, &[3, 3]).unwrap()).unwrap_err();
    assert_eq!(error.status(), Status::ERROR_MISMATCH);
}

#[test]
fn parameters() {
    let (layer, context) = (Layer::new(), context());
    let builder =
        Module::builder(Algo::LOCON).linear(ROWS as i64, COLUMNS as i64).rank(RANK as i32).alpha(ALPHA as f64);
    let module = builder.build(&context).unwrap();
    assert!(module.params().unwrap().iter().any(|(name, ..)| name == "lora_up.weight"));
    let mut down = layer.down.clone();
    let down = TensorMut::new(&mut down, &[RANK as i64, COLUMNS as i64]).unwrap();
    unsafe {
        module.write_param("lora_up.weight", layer.tensors()[0].1).unwrap();
        module.bind_param("lora_down.weight", &down).unwrap();
    }
    let mut data = layer.base.clone();
    module.merge(&mut weight(&mut data), 1.0).unwrap();
    assert_near(&data, &layer.merged(1.0));
}

#[test]
fn batches() {
    let (layer, context) = (Layer::new(), context());
    let module = layer.module(&context);
    let mut out = vec![0f32; ROWS * COLUMNS];
    let base = TensorRef::new(&layer.base, &[ROWS as i64, COLUMNS as i64]).unwrap();
    let mut batch = Batch::new(&context, &[Item::new_weight(&module, base, weight(&mut out))]).unwrap();
    drop((module, context));
    batch.merge(&[0.5]).unwrap();
    assert!(!batch.explain().unwrap().is_empty());
    drop(batch);
    assert_near(&out, &layer.merged(0.5));
}

#[test]
fn networks() {
    let layer = Layer::new();
    let (adapter, ..) = files("networks", &layer);
    let context = context();
    let network = Network::load(&context, adapter).unwrap();
    assert_eq!(network.modules().unwrap().len(), 1);
    let mut data = layer.base.clone();
    let report = network.merge_into(vec![("mid.proj.weight", weight(&mut data))], 0.8).unwrap();
    assert_eq!((report.layers, report.matched), (1, 1));
    assert_near(&data, &layer.merged(0.8));

    let mut other = [0f32; 4];
    let weights = vec![("other.weight", TensorMut::new(&mut other, &[2, 2]).unwrap())];
    assert_eq!(network.merge_into(weights, 1.0).unwrap_err().status(), Status::ERROR_MISMATCH);

    let options = MatchOptions { excludes: vec!["*mid_proj*".to_owned()], ..Default::default() };
    let weights = vec![("mid.proj.weight", weight(&mut data))];
    let (mut batch, report) = Network::match_weights(&context, &[&network], weights, &options).unwrap();
    assert_eq!(report.excluded, 1);
    batch.merge(&[0.5]).unwrap();
    drop(batch);
    assert_near(&data, &layer.merged(0.8));
}

#[test]
fn whole_files() {
    let (layer, context) = (Layer::new(), context());
    let (adapter, base, out) = files("whole", &layer);
    let mut calls = 0;
    let options = MergeOptions::new().multiplier(1.0).rule(Some("mid.*"), -1, 0.25).progress(|done, total| {
        assert!(done <= total);
        calls += 1;
        ControlFlow::Continue(())
    });
    let report = merge_files(&context, &base, &[&adapter], &out, options).unwrap();
    assert_eq!((report.layers, report.matched, report.changed), (1, 1, 1));
    assert!(calls > 0);
    assert_near(&merged_file(&out), &layer.merged(0.25));
    let again = merge_files(&context, &base, &[&adapter], &out, MergeOptions::new());
    assert_eq!(again.unwrap_err().status(), Status::ERROR_INVALID_ARGUMENT);
    merge_files(&context, &base, &[&adapter], &out, MergeOptions::new().overwrite()).unwrap();
    assert!(inspect_file(&context, &adapter).unwrap().json.starts_with('{'));
}

#[test]
fn progress_cancels() {
    let (layer, context) = (Layer::new(), context());
    let (adapter, base, out) = files("cancel", &layer);
    let options = MergeOptions::new().progress(|_, _| ControlFlow::Break(()));
    let error = merge_files(&context, &base, &[&adapter], &out, options).unwrap_err();
    assert_eq!(error.status(), Status::ERROR_CANCELLED);
    assert!(!out.exists());
}

#[test]
#[should_panic(expected = "from the callback")]
fn a_panic_in_progress_comes_through() {
    let (layer, context) = (Layer::new(), context());
    let (adapter, base, out) = files("panic", &layer);
    let options = MergeOptions::new().progress(|_, _| panic!("from the callback"));
    let _ = merge_files(&context, &base, &[&adapter], &out, options);
}
