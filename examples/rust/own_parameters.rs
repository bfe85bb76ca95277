//! A module on the program's own parameters, as a trainer has them: bound once, read whenever they have changed.
use lycoris::{Algo, Context, Module, Result, TensorMut};

fn main() -> Result<()> {
    let context = Context::cpu()?;
    let module = Module::builder(Algo::LOKR)
        .linear(48, 32)
        .rank(4)
        .alpha(2.0)
        .factor(4)
        .build(&context)?;

    // One flat vector for the optimiser; each parameter is a piece of it.
    let params = module.params()?;
    let size = |shape: &[i64]| shape.iter().product::<i64>() as usize;
    let mut masters = vec![0f32; params.iter().map(|(_, _, shape)| size(shape)).sum()];
    let mut rest = masters.as_mut_slice();
    for (name, _, shape) in &params {
        let (piece, remaining) = rest.split_at_mut(size(shape));
        piece.fill(0.125); // what an initialiser or an optimiser step would write
        let view = TensorMut::new(piece, shape)?;
        // SAFETY: `masters` lives longer than the module's last call, and nobody writes to it meanwhile.
        unsafe { module.bind_param(name, &view)? };
        println!("{name} {shape:?}");
        rest = remaining;
    }

    let mut weight = vec![1f32; 48 * 32];
    let mut view = TensorMut::new(&mut weight, &[48, 32])?;
    module.merge(&mut view, 0.5)?;
    println!(
        "scale {}, first weight {} after the merge",
        module.info()?.scale,
        weight[0]
    );
    Ok(())
}
