package android.graphics;

import java.io.ByteArrayInputStream;
import java.io.IOException;
import javax.imageio.ImageIO;

/** Decodes with the desktop's own decoder, as a phone does with its own. */
public final class BitmapFactory {
    private BitmapFactory() {}

    public static Bitmap decodeByteArray(byte[] data, int offset, int length) {
        try {
            return new Bitmap(ImageIO.read(new ByteArrayInputStream(data, offset, length)));
        } catch (IOException error) {
            return null;
        }
    }
}
